"""Images: files, data sets, augmentation and batches."""
