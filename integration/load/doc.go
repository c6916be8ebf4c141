// Package load measures: `make bench` builds it as a test binary with the tag bench and runs it. It never fails for slowness.
// What each line means, and what bounds it, stands in docs/performance.md.
package load
