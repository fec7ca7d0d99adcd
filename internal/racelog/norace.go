//go:build !race

package racelog

// Enabled says that this program was built with -race.
const Enabled = false
