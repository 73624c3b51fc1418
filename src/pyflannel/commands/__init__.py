"""Work of flannelctl itself: it examines and cleans a host, with or without a daemon."""
