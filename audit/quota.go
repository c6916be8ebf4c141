package audit

// QuotaConfig bounds what one task tree may write, so that nobody can fill the log to stop everybody.
// The budget belongs to the tree (`txn`): spawning more agents doesn't enlarge it.
type QuotaConfig struct {
	RecordsPerSecond float64
	RecordBurst      int
	BytesPerSecond   float64
	ByteBurst        int
	MaxTrees         int // trees tracked at once; the longest idle one makes room
}

// DefaultQuota is generous for work and tight for flooding.
func DefaultQuota() QuotaConfig {
	return QuotaConfig{RecordsPerSecond: 20000, RecordBurst: 40000, BytesPerSecond: 64 << 20, ByteBurst: 128 << 20, MaxTrees: 65536}
}
