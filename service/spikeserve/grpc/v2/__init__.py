"""Generated from proto/grpc_service.proto and proto/model_config.proto."""
