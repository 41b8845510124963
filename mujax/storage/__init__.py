"""Files that mujax keeps: written whole, read by checking readers, on disks or in buckets."""
