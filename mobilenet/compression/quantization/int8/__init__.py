"""int8 quantization: where quantizers stand, calibration, training with them, saving."""
