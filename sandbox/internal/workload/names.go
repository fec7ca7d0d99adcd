package workload

import (
	"crypto/rand"
	"encoding/hex"
	mathrand "math/rand/v2"
	"strconv"
	"strings"
)

// NewID makes a random identifier of 64 hexadecimal digits, as Docker's. Its
// first 12, which become the host name, are never all decimal, so that nobody
// takes them for a number.
func NewID() string {
	for {
		var b [32]byte
		rand.Read(b[:]) // never fails
		id := hex.EncodeToString(b[:])
		if strings.ContainsAny(id[:12], "abcdef") {
			return id
		}
	}
}

// RandomName makes a name such as "calm_noether". Names are not unique: retry
// above 0 appends a digit, for the caller who found the last one taken.
func RandomName(retry int) string {
	name := adjectives[mathrand.IntN(len(adjectives))] + "_" + surnames[mathrand.IntN(len(surnames))]
	if retry > 0 {
		name += strconv.Itoa(mathrand.IntN(10))
	}
	return name
}

var adjectives = strings.Fields(`able agile amber apt azure blithe bold brave
	breezy bright brisk calm candid cheery civil clear clever cool cosy crisp
	curious dapper daring deft eager earnest easy fair fleet fluent fond frank
	fresh gentle glad golden grand happy hardy honest humble jolly jovial keen
	kind lively loyal lucid mellow merry mild modest neat nimble noble patient
	placid plucky polite prompt proud quick quiet ready robust rosy serene
	sharp silent sincere sleek smart snug sober solid spry stable steady sunny
	swift tender tidy trusty upbeat valiant vivid warm wise witty zesty`)

var surnames = strings.Fields(`abel agnesi ampere babbage banach bassi bernoulli
	bohr boole born bose cantor carson cauchy cerf church cohen conway curie
	dalton darwin descartes dijkstra dirac edison einstein engelbart erdos euclid
	euler faraday fermat fermi feynman fourier franklin galileo galois gauss
	germain godel goldberg hamilton hardy hawking heisenberg hertz hilbert
	hopper hubble hypatia jacobi joule kepler knuth kovalevskaya lagrange
	lamarr laplace leibniz lovelace maxwell meitner mendel mirzakhani morse
	napier nash newton nobel noether ohm pascal pauli perlman planck poincare
	ptolemy ramanujan riemann ritchie rubin sagan shannon tarjan tesla thompson
	torvalds turing volta wiles wirth wozniak wu yalow`)
