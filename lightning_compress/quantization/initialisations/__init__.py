"""Where the centroids of k-means begin: one function a file, from points and a number to that many centroids."""
