"""Operations in which the U-Net and its samplers spend their time, a folder each."""
