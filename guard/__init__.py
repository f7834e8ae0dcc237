"""What must not get in or out: detectors, layers, risk; used by the gateway and the streams."""
