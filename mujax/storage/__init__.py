"""What mujax keeps: files written whole, records that are checked, buckets."""
