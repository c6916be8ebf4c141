// Package feed holds the plain types of the stream from the broker to the proxies, and the conversions
// in both directions between them and deputy.feed.v1. Generated types stop here.
//
// What comes out of a conversion is checked: exactly one member where one is wanted, canonical SPIFFE
// IDs, bounded lists and strings, times present, no unknown protobuf field. A revocation is a [Match];
// whoever wants to know whether a chain is revoked asks it for its actor.RevocationKeys and looks up
// [MatchOf] each, so that broker and proxy can't disagree about what a revocation covers.
package feed
