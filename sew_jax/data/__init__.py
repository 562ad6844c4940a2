"""From audio files to static-shape batches."""
