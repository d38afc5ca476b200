"""Images, whatever the task: files, and whole data sets in one array."""
