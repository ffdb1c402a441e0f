"""Files and images from disk: embedding files, vectors, image folders, image arrays."""
