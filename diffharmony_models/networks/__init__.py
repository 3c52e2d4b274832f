"""Networks of the method that diffusers does not have, in plain torch."""
