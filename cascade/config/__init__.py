"""Every setting of the project as frozen, typed models; imports no torch."""
