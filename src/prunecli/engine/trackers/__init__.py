"""Programs that keep the curves of training runs, behind one interface."""
