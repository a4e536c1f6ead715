"""Applications for the tests of the ways in, each as a user would write it."""
