"""The web page of `flanneld --http`: its files, the documents that it shows, and the access to them."""
