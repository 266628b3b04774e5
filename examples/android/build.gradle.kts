// The Kotlin plugin sets the compiler's version, which must read what dermedge was compiled with.
plugins {
    alias(libs.plugins.android.application) apply false
    alias(libs.plugins.kotlin.jvm) apply false
}
