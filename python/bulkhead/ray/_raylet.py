"""What programs ask of Ray's compiled part: that it is an optimised build (its own benchmark does)."""

OPTIMIZED = True
