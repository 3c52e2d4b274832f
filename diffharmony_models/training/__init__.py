"""Training of the colour regressor, the autoencoder, the Harmony-VAE, the harmonizer (stage 1) and the refiner (stage
2): one loop, to which each brings its model, its data and its loss.
"""
