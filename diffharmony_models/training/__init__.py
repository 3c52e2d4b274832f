"""Training of the autoencoder, the harmonizer (stage 1) and the refiner (stage 2)."""
