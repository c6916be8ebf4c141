package audit

import (
	"log/slog"
	"time"
)

// Config opens a log.
type Config struct {
	Dir    string // folder of this log alone; made (0700) when missing
	Source string // SPIFFE ID of the role that writes; stands on every record
	Dev    bool   // `deputy dev`; stands on every record
	Key    *Key   // signs checkpoints; its name is the log's origin

	// OldKeys are earlier keys of this log, in vkey form, accepted for checkpoints that are already there.
	OldKeys []string
	// HashKey keys the hashes that stand for scrubbed text (see [Log.Text]); at least 16 bytes where
	// records hold statements. It never appears in the log.
	HashKey []byte
	// Seen is a checkpoint that the log must still contain (the last one that an archive acknowledged).
	Seen []byte

	Now    func() time.Time // default time.Now
	FS     FS               // default: the operating system's files
	Logger *slog.Logger     // default slog.Default; never gets record contents

	SegmentSize   int64         // default 16 MiB; at least 64 KiB
	MinFree       int64         // bytes of its disk that the log leaves free; default a twentieth, at most 1 GiB
	MaxFrameDelay time.Duration // longest wait of an outcome record; default and ceiling 20 ms
	Heartbeat     time.Duration // default 30 s; silence longer than this is suspicious
	Quota         *QuotaConfig  // default DefaultQuota()
}
