"""Where records come from: files, folders, Hub data sets."""
