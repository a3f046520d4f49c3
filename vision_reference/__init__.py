"""Train, distil and evaluate image classifiers: torchvision's classification recipe with a teacher."""
