"""Pictures in and out, and the streams of training rows made from them."""
