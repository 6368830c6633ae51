"""One model's half of a crosscoder in the formats of other libraries, a module for each."""
