"""Python face of the kernels: a public function, its plain-torch twin and the autograd glue per file."""
