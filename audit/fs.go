package audit

import "io"

// FS is the disk below a log: the place where tests inject faults.
//
// Contract. Names are paths as given in Config.Dir. Nothing is durable before File.Datasync (contents
// and length of a file) or SyncDir (which files there are) returned nil; after an error from either
// the state is unknown and the log never tries again. Nothing is called concurrently for one file
// except ReadAt.
type FS interface {
	MkdirAll(dir string) error                     // 0700
	OpenFile(name string, flag int) (File, error)  // flag as in os.OpenFile; new files are 0600
	ReadDir(dir string) ([]string, error)          // names, sorted
	Remove(name string) error                      // for half-made segments only
	SyncDir(dir string) error                      // makes creation and removal durable
	Lock(dir string) (unlock io.Closer, err error) // exclusive; ErrLocked if held
}

// File is one segment.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Datasync() error
}
