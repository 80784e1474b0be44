"""The Open Inference Protocol v2, free of its transport: tensors to requests and answers to tensors."""
