"""Images for the public benchmarks, in the layouts that their judges read."""
