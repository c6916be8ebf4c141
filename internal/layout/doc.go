// Package layout holds no code: its test keeps the import directions of docs/design.md true.
package layout
