"""int8 quantization: quantizer placement, calibration, quantization-aware training, saving."""
