"""What keeps a store in order over years: merging, backing up, removing what nothing mentions, compacting, migrating."""
