"""From files to token ids. `read`, `formats` and `summary` load without torch; the others need it."""
