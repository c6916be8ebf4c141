// Package feedapi serves deputy.feed.v1 to the proxies, on the feed listener.
//
//   - Only proxies that configuration names, by their exact SPIFFE IDs, and only about their own targets.
//   - One complete snapshot, then every revision, one after the other and without a gap (one that doesn't
//     concern a proxy comes empty), then heartbeats.
//   - A proxy that doesn't keep up is cut, and begins with a snapshot again. So is one whose SVID ends.
package feedapi
