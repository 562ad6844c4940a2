"""The rates that everything shares: audio at 16 kHz, one frame of the model every 320 samples, 50 frames a second."""

SAMPLE_RATE = 16_000  # of audio, after reading
FRAME_SAMPLES = 320  # from one frame of the model to the next
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
