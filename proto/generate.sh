#!/bin/sh
# Generates the Go code of every .proto file. Needs protoc (Debian: protobuf-compiler) and the two
# plugins, which `make proto` installs at the versions named there.
set -eu
cd "$(dirname "$0")"
find deputy -name '*.proto' | sort | while read -r f; do
	protoc -I . --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative "$f"
done
