"""Where images come from: files, checksums, drawn stand-ins, batches."""
