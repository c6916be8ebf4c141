// Package sock asks the kernel what it knows of a TCP connection. That is known on Linux only; elsewhere a connection's end shows at the next read.
package sock
