"""The agency's orders: made of a run's configuration, approved by its people, shown to the institutions."""
