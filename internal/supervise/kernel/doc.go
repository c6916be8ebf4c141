// Package kernel is what the agent side learns from the kernel about processes: who is at the other end
// of a Unix socket, who descends from whom, and how to keep a process's memory to itself.
//
// A process is named by its id together with its start time, since ids are reused. Nothing here believes
// what a process says about itself.
package kernel
