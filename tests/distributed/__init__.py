"""Several gloo ranks on one machine."""
