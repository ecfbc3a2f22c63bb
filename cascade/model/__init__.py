"""The U-Net of every stage: plain tensors in, a plain tensor out."""
