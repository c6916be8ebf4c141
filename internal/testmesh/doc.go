// Package testmesh is the one harness for tests of the whole: it builds the programs with the race
// detector, starts a real PostgreSQL, an identity provider and every role as a process of its own, and
// runs commands and agents against them as signed-in users.
//
// As root each role has a uid of its own and agents are isolated, as in production; otherwise all share
// one uid and every hop is graded asserted. Tests hold in both cases ([Isolated] tells which).
package testmesh
