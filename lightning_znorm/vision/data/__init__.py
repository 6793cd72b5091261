"""LightningDataModules: the data sets of the paper, trees of images, and data that come with an installed package."""
