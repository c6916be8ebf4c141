package main

import (
	"io"
	"log/slog"
)

// runLogger is for commands that people see: warnings, or everything.
func runLogger(w io.Writer, verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}
