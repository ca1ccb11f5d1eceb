"""The maps and the latent code that parametrises them."""
