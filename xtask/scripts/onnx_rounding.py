"""What ONNX Runtime's default blocks of integers stand for."""
import numpy


def rounded(weight, blocks):
    """A matrix after rounding; `blocks` is BITS:BLOCK_SIZE:symmetric|asymmetric."""
    bits, block, kind = blocks.split(":")
    bits, block, symmetric = int(bits), int(block), kind == "symmetric"
    top, middle = (15, 8) if bits == 4 else (255, 128)
    rows, width = weight.shape
    out = numpy.empty_like(weight)
    for start in range(0, width, block):
        part = weight[:, start:start + block]
        low, high = part.min(1, keepdims=True), part.max(1, keepdims=True)
        if symmetric:
            scale, zero = numpy.where(abs(high) > abs(low), high, low) / numpy.float32(-middle), numpy.float32(middle)
        else:
            low, high = numpy.minimum(low, 0), numpy.maximum(high, 0)
            scale = (high - low) / numpy.float32(top)
            zero = numpy.floor(-low / scale + numpy.float32(0.5)).clip(0, top)
        codes = numpy.floor(part * (1 / scale) + zero + numpy.float32(0.5)).clip(0, top)
        out[:, start:start + block] = (codes - zero) * scale
    return out
