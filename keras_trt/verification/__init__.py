"""Engine against Keras: how far they are apart (`verify`), and on which rows (`gate`)."""
