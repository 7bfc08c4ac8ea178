"""Files read and written within bounds: sizes, nesting and time are known before anything is believed."""
